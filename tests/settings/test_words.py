"""One of a thing has no plural, and a number that there is not is a dash or an empty cell."""

import math

from cgnl.data.videos import VideoInfo
from cgnl.files import write_csv
from cgnl.settings.words import counted, decimal, percent
from cgnl.training.video_views import damage


def test_numbers_of_things():
    assert [counted(number, "video") for number in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]


def test_numbers_that_are_not_there(tmp_path):
    assert (percent(50), percent(math.nan), decimal(0.126), decimal(math.nan)) == ("50.00 %", "–", "0.13", "–")
    write_csv(tmp_path / "a.csv", [("name", "ap"), ("a", math.nan), ("b", 0.5)])
    assert (tmp_path / "a.csv").read_text().split() == ["name,ap", "a,", "b,0.5"]


def test_one_frame():
    assert damage(VideoInfo(1, 25.0, 4, 4, 2), lost=1) == [
        "holds 1 frame, but its container promises 2",
        "has 1 wanted frame that could not be decoded whole",
    ]
