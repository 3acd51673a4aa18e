import pytest
import torch

from twosides.conditioning import flat, nested, nullified

ROWS = torch.arange(6.0).reshape(3, 2)
KEEP_FIRST = torch.tensor([False, True, True])


def test_flat_and_nested_are_inverse_of_each_other():
    tree = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {}}
    assert nested(flat(tree)) == tree
    with pytest.raises(ValueError, match="inside"):
        nested({"a": 1, "a.b": 2})
    with pytest.raises(ValueError, match="and a dictionary"):
        nested({"a.b": 1, "a": 2})


@pytest.mark.parametrize(
    "null", [7, 7.0, torch.tensor(7), torch.tensor([[7, 7]]), torch.tensor([[7.0, 7.0]] * 3)]
)
def test_a_null_value_may_be_a_number_a_row_or_a_row_each(null):
    """In the dtype of what it replaces, for all samples or for those that are dropped."""
    full = torch.full((3, 2), 7.0)
    (all_gone,) = nullified({"a": ROWS}, {"a": null}).values()
    assert torch.equal(all_gone, full) and all_gone.dtype == ROWS.dtype
    (some_gone,) = nullified({"a": ROWS}, {"a": null}, KEEP_FIRST).values()
    assert torch.equal(some_gone, torch.cat([ROWS[:1], full[1:]]))


def test_masks_and_labels_keep_their_dtype():
    for given, null in ((torch.ones(3, dtype=torch.bool), False), (torch.tensor([1, 2, 3]), 9)):
        replaced = nullified({"a": given}, {"a": null}, KEEP_FIRST)["a"]
        assert replaced.dtype == given.dtype
        assert replaced.tolist() == [given[0].item(), null, null]


def test_only_what_is_named_is_replaced_and_nothing_in_place():
    given = {"deep": {"a": ROWS, "b": "text"}, "c": ROWS}
    for null in ({"deep": {"a": 0}}, {"deep.a": 0}):
        made = nullified(given, null)
        assert torch.equal(made["deep"]["a"], 0 * ROWS) and made["c"] is ROWS
        assert made["deep"]["b"] == "text" and given["deep"]["a"] is ROWS
    assert nullified(given, {"deep.b": None})["deep"]["b"] is None
    with pytest.raises(ValueError, match="no such conditioning"):
        nullified(given, {"d": 0})
