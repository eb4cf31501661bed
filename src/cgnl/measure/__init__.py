"""What ``cgnl benchmark`` measures: time, memory and accuracy of the blocks, of their rivals, and of networks.

Every measurement is made side by side in one process and ends in a JSON record with the command, the commit, the
versions and the machine that made it, and with what that machine can do at best (`rooflines`) in the same run.
"""
