import pytest

from cgnl.measure.forms import gram_form
from cgnl.ops.eager import gram

SIZES = (1, 2, 1, 3, 1)


@pytest.mark.parametrize("taken", [True, False])
def test_the_rule_comes_back_after_each_call_and_after_an_error(taken):
    rule = gram.pays
    chosen = []

    @gram_form(taken)
    def run(divisor):
        chosen.append(gram.pays(*SIZES, training=True))
        return 1 / divisor

    for _ in range(2):
        assert run(1) == 1
        assert gram.pays is rule
    with pytest.raises(ZeroDivisionError):
        run(0)
    assert gram.pays is rule
    assert chosen == [taken] * 3
