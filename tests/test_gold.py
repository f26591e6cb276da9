"Weights, losses, pictures, exports, scores and plans are those that version 0.1 gave, number for number."
from gold import compared

def test_gold():
    other, _ = compared()
    assert other==[]
