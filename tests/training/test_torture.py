import pytest

from torture import torture


@pytest.mark.parametrize(("mode", "kills"), [("one", 5), ("ddp", 2), ("fsdp", 2)])
def test_kills_leave_no_trace(tmp_path, mode, kills):
    """Bitwise: weights, optimizer, average, log and model; tests/helpers/torture.py does it 200 times."""
    assert torture(kills, mode, seed=kills, folder=tmp_path) >= 1
