"""The data sets we know, a row each. A row is data: what differs between two data sets is told here, not in code."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DatasetSpec:
    """How the lists of a data set look, and how its videos are sampled.

    Args:
        about: what it is for, in a line.
        columns: what a row of the list holds, left to right (`manifest.COLUMNS` explains the names).
        sampling: "dense" takes a window of the video, "sparse" one frame from each of equal segments.
        list_file: file in DATA.PATH_TO_DATA_DIR with {} for the split; None asks DATA.LABEL_PATH_TEMPLATE.
        test_split: the split a test reads.
        colors: order of the channels the released weights of this data set were trained with.
        wide_single_crop: with one spatial crop, test on the centre of a frame whose short side is
            TRAIN_JITTER_SCALES[0]; otherwise the short side is the crop itself.
    """

    about: str
    columns: tuple[str, ...] = ("path", "label")
    sampling: Literal["dense", "sparse"] = "sparse"
    list_file: str | None = "{}.csv"
    test_split: str = "test"
    colors: Literal["RGB", "BGR"] = "RGB"
    wide_single_crop: bool = False


FRAME_COLUMNS = ("path", "num_frames", "label")

CATALOG: dict[str, DatasetSpec] = {
    "kinetics": DatasetSpec(
        "Kinetics-400/600 and UCF101 as UniFormer samples them", sampling="dense", wide_single_crop=True
    ),
    "kinetics_sparse": DatasetSpec("Kinetics-400/600/700/710 as UniFormerV2 and the light UniFormers sample them"),
    "mit": DatasetSpec("Moments in Time V1"),
    "anet": DatasetSpec(
        "ActivityNet and HACS: trained inside the annotated segment, tested on the whole video",
        columns=("path", "total", "begin", "end", "label"),
    ),
    # OpenCV reads extracted frames as BGR and the official code left them so; see DATA.REVERSE_INPUT_CHANNEL.
    "sth": DatasetSpec(
        "Something-Something V1 and V2: direction matters, so set DATA.RANDOM_FLIP False",
        columns=FRAME_COLUMNS,
        list_file=None,
        test_split="val",
        colors="BGR",
    ),
    "hmdb": DatasetSpec(
        "HMDB51 as extracted frames",
        columns=FRAME_COLUMNS,
        sampling="dense",
        list_file=None,
        test_split="val",
        colors="BGR",
    ),
}
