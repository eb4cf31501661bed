"""Time, memory and accuracy of the blocks, of their rivals, and of networks: the measurements of ``cgnl benchmark``.

Candidates run side by side in one process. Each measurement ends in a JSON record with the command, commit, versions
and machine that made it, and with the best rates of that machine (`rooflines`) in the same run.
"""
