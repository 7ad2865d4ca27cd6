"""Describe the known data sets, one row each. All differences between data sets are here, not in code.

A row of `CATALOG` is a way to read lists and videos; a row of `DATASETS` is a public data set, with the rows of
`CATALOG` that can read it.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DatasetSpec:
    """The columns of the lists of a data set, and how its videos are sampled.

    Args:
        about: the data sets, in one line.
        columns: names of the columns of the list, left to right; see `rows.COLUMNS`.
        sampling: row of `SAMPLERS`: "dense" takes a window of the video, "sparse" a frame from each of equal parts.
        list_file: name of the list with {} for the split; None: the configuration names it.
        test_split: the split that a test reads.
        colors: order of the channels with which the released weights of this data set were trained.
        wide_single_crop: with one spatial crop, a UniFormer is tested on the centre of a frame whose short side is that
            of the smallest training frame; otherwise, and for a UniFormerV2, the short side is the crop.
        images: still images; instead of a list, the split has a folder with a folder of images for every class.
    """

    about: str
    columns: tuple[str, ...] = ("path", "label")
    sampling: str = "sparse"
    list_file: str | None = "{}.csv"
    test_split: str = "test"
    colors: Literal["RGB", "BGR"] = "RGB"
    wide_single_crop: bool = False
    images: bool = False


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
    # OpenCV reads extracted frames as BGR, and the official code did not convert them.
    "sth": DatasetSpec(
        "Something-Something V1 and V2, where direction matters: no flip",
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
    "imagenet": DatasetSpec(
        "ImageNet-1K, and any images in train/<class>/ and val/<class>/", list_file="{}", test_split="val", images=True
    ),
}


@dataclass(frozen=True)
class Dataset:
    """A public data set: where it comes from, and how its lists are made and read.

    Args:
        name: as its authors write it.
        kinds: the rows of `CATALOG` that can read it; the one that the recipes use is first.
        num_classes: None for any number.
        page: download page.
        licence: conditions of use, in a few words; the download page is authoritative.
        class_names: source of the class names.
        annotations: key of `READERS` in `slowfast.prepare.annotations`, or "folders"; None if there is no reader.
        flip: whether a mirrored video keeps its class.
        separator: between the columns of its lists.
        frame_list_file: name of lists of frame folders with {} for the split; None if there are none.
        lists_in: folder of the lists, below the folder of the data set.
        tested_on: the split of the published accuracies, which becomes the test list.
    """

    name: str
    kinds: tuple[str, ...]
    num_classes: int | None
    page: str
    licence: str
    class_names: str
    annotations: (
        Literal["folders", "lists", "kinetics", "something", "moments", "activitynet", "ucf101", "hmdb51"] | None
    ) = None
    flip: bool = True
    separator: str = " "
    frame_list_file: str | None = None
    lists_in: str = ""
    tested_on: Literal["val", "test"] = "val"


UPLOADED = "videos belong to those who uploaded them"

# The key is the folder below $DATA_ROOT in which the experiments look for lists and videos.
DATASETS: dict[str, Dataset] = {
    **{
        f"k{number}": Dataset(
            f"Kinetics-{number}",
            kinds=("kinetics_sparse",) if number == 700 else ("kinetics", "kinetics_sparse"),
            num_classes=number,
            page="https://github.com/cvdfoundation/kinetics-dataset",
            licence=f"annotations CC BY 4.0; {UPLOADED}",
            class_names="the CSV files, sorted",
            annotations="kinetics",
            separator=",",
        )
        for number in (400, 600, 700)
    },
    "k710": Dataset(
        "Kinetics-710",
        kinds=("kinetics_sparse",),
        num_classes=710,
        page="https://github.com/OpenGVLab/UniFormerV2",
        licence="as Kinetics, of whose videos it is made",
        class_names="the file beside the authors' lists",
        annotations="lists",
        separator=",",
    ),
    **{
        f"sthv{version}": Dataset(
            f"Something-Something V{version}",
            kinds=("sth",),
            num_classes=174,
            page="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
            licence="research licence, to be accepted there",
            class_names=class_names,
            annotations="something",
            flip=False,
            frame_list_file=f"somesomev{version}_rgb_{{}}_split.txt",
        )
        for version, class_names in ((1, "`labels.json` or `labels.csv`"), (2, "`labels.json`"))
    },
    "mit": Dataset(
        "Moments in Time V1",
        kinds=("mit",),
        num_classes=339,
        page="http://moments.csail.mit.edu",
        licence="non-commercial research, after a form",
        class_names="`moments_categories.txt`",
        annotations="moments",
        separator=",",
    ),
    "anet": Dataset(
        "ActivityNet 1.3",
        kinds=("anet",),
        num_classes=200,
        page="http://activity-net.org/download.html",
        licence=UPLOADED,
        class_names="the JSON file, sorted",
        annotations="activitynet",
    ),
    "hacs": Dataset(
        "HACS Segments",
        kinds=("anet",),
        num_classes=200,
        page="http://hacs.csail.mit.edu",
        licence=UPLOADED,
        class_names="the JSON file, sorted",
        annotations="activitynet",
    ),
    "ucf101": Dataset(
        "UCF101",
        kinds=("kinetics",),
        num_classes=101,
        page="https://www.crcv.ucf.edu/data/UCF101.php",
        licence=f"none stated; {UPLOADED}",
        class_names="`classInd.txt`",
        annotations="ucf101",
        lists_in="split1",
        tested_on="test",
    ),
    "hmdb51": Dataset(
        "HMDB51",
        kinds=("hmdb", "kinetics"),
        num_classes=51,
        page="https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database",
        licence="CC BY 4.0; videos belong to their owners",
        class_names="names of the split files, sorted",
        annotations="hmdb51",
        frame_list_file="{}.txt",
        lists_in="split1",
        tested_on="test",
    ),
    "imagenet": Dataset(
        "ImageNet-1K",
        kinds=("imagenet",),
        num_classes=1000,
        page="https://www.image-net.org/download.php",
        licence="non-commercial research, after registration",
        class_names="`LOC_synset_mapping.txt`, or folder names, sorted",
    ),
    "own": Dataset(
        "your own folder",
        kinds=("kinetics", "kinetics_sparse"),
        num_classes=None,
        page="",
        licence="yours",
        class_names="folder names, sorted",
        annotations="folders",
    ),
}
