"""The known data sets, one row each. All differences between two data sets are here, not in code.

`CATALOG` has the ways in which lists and videos are read, which TRAIN.DATASET and TEST.DATASET name; `DATASETS` has the
public data sets, each with the ways that fit it. DATASET.md shows both.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DatasetSpec:
    """How the lists of a data set look, and how its videos are sampled.

    Args:
        about: what it is for, in a line.
        columns: what a row of the list holds, left to right (`rows.COLUMNS` explains the names).
        sampling: "dense" takes a window of the video, "sparse" one frame from each of equal segments.
        list_file: file in DATA.PATH_TO_DATA_DIR with {} for the split; None asks DATA.LABEL_PATH_TEMPLATE.
        images: still images; instead of a list, the split has a folder that holds a folder of images for every class.
        test_split: the split a test reads.
        colors: order of the channels the released weights of this data set were trained with.
        wide_single_crop: with one spatial crop, a UniFormer is tested on the centre of a frame whose short side is
            TRAIN_JITTER_SCALES[0]; otherwise, and for a UniFormerV2, the short side is the crop itself.
    """

    about: str
    columns: tuple[str, ...] = ("path", "label")
    sampling: Literal["dense", "sparse"] = "sparse"
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
    "imagenet": DatasetSpec(
        "ImageNet-1K, and any images in train/<class>/ and val/<class>/", list_file="{}", test_split="val", images=True
    ),
}


@dataclass(frozen=True)
class Dataset:
    """A public data set: where it comes from, and how its lists are made and read.

    Args:
        name: as its authors write it.
        kinds: the rows of `CATALOG` that read it, the recipes' first one first.
        num_classes: None where the folder tells.
        page: download page.
        licence: what to know before using it, in a few words; the page has the last word.
        class_names: where they come from.
        annotations: key of `READERS` in `slowfast.prepare.annotations`, or "folders"; None: its lists must be written by
            hand.
        flip: whether a mirrored video keeps its class (DATA.RANDOM_FLIP).
        separator: between the columns of its lists (DATA.PATH_LABEL_SEPARATOR).
        frame_list_file: of lists of frame folders (DATA.LABEL_PATH_TEMPLATE); None where there are none.
        lists_in: folder of the lists, below the folder of the data set.
        tested_on: the split that published accuracies are of, which becomes the test list.
    """

    name: str
    kinds: tuple[str, ...]
    num_classes: int | None
    page: str
    licence: str
    class_names: str
    annotations: Literal["folders", "kinetics", "something", "ucf101", "hmdb51"] | None = None
    flip: bool = True
    separator: str = " "
    frame_list_file: str | None = None
    lists_in: str = ""
    tested_on: Literal["val", "test"] = "test"


KINETICS_PAGE = "https://github.com/cvdfoundation/kinetics-dataset"
KINETICS_LICENCE = "annotations CC BY 4.0; videos belong to those who uploaded them"
SOMETHING_PAGE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
SOMETHING_LICENCE = "research licence, to be accepted there"

# The key is the folder below $DATA_ROOT in which the experiments look for lists and videos.
DATASETS: dict[str, Dataset] = {
    **{
        f"k{number}": Dataset(
            f"Kinetics-{number}",
            kinds=("kinetics_sparse",) if number == 700 else ("kinetics", "kinetics_sparse"),
            num_classes=number,
            page=KINETICS_PAGE,
            licence=KINETICS_LICENCE,
            class_names="the CSV files, sorted",
            annotations="kinetics",
            separator=",",
            tested_on="val",
        )
        for number in (400, 600, 700)
    },
    "k710": Dataset(
        "Kinetics-710",
        kinds=("kinetics_sparse",),
        num_classes=710,
        page="https://github.com/OpenGVLab/UniFormerV2",
        licence="as Kinetics, of whose videos it is made",
        class_names="the lists' page",
        separator=",",
        tested_on="val",
    ),
    "sthv1": Dataset(
        "Something-Something V1",
        kinds=("sth",),
        num_classes=174,
        page=SOMETHING_PAGE,
        licence=SOMETHING_LICENCE,
        class_names="`labels.json` or `labels.csv`",
        annotations="something",
        flip=False,
        frame_list_file="somesomev1_rgb_{}_split.txt",
        tested_on="val",
    ),
    "sthv2": Dataset(
        "Something-Something V2",
        kinds=("sth",),
        num_classes=174,
        page=SOMETHING_PAGE,
        licence=SOMETHING_LICENCE,
        class_names="`labels.json`",
        annotations="something",
        flip=False,
        frame_list_file="somesomev2_rgb_{}_split.txt",
        tested_on="val",
    ),
    "mit": Dataset(
        "Moments in Time V1",
        kinds=("mit",),
        num_classes=339,
        page="http://moments.csail.mit.edu",
        licence="non-commercial research, after a form",
        class_names="`moments_categories.txt`",
        separator=",",
        tested_on="val",
    ),
    "anet": Dataset(
        "ActivityNet 1.3",
        kinds=("anet",),
        num_classes=200,
        page="http://activity-net.org/download.html",
        licence="videos belong to those who uploaded them",
        class_names="the annotation's taxonomy",
        tested_on="val",
    ),
    "hacs": Dataset(
        "HACS Clips",
        kinds=("anet",),
        num_classes=200,
        page="http://hacs.csail.mit.edu",
        licence="videos belong to those who uploaded them",
        class_names="the CSV file",
        tested_on="val",
    ),
    "ucf101": Dataset(
        "UCF101",
        kinds=("kinetics",),
        num_classes=101,
        page="https://www.crcv.ucf.edu/data/UCF101.php",
        licence="none stated; videos belong to those who uploaded them",
        class_names="`classInd.txt`",
        annotations="ucf101",
        lists_in="split1",
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
    ),
    "imagenet": Dataset(
        "ImageNet-1K",
        kinds=("imagenet",),
        num_classes=1000,
        page="https://www.image-net.org/download.php",
        licence="non-commercial research, after registration",
        class_names="`LOC_synset_mapping.txt`, or folder names, sorted",
        tested_on="val",
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
