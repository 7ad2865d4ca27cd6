"""Package metadata; `pip install -e .[dev]` is the whole installation."""

from pathlib import Path

from setuptools import find_packages, setup

BESIDE = ("configs", "exp", "tools")

setup(
    name="slowfast",
    version="0.2.0",
    description="Training and testing of UniFormer and UniFormerV2 video backbones",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # No upper bound: on a Python that is too new, pip names the package that has no wheel for it.
    python_requires=">=3.10",
    # The wheel holds the experiments and tools, which a checkout has beside the package.
    packages=[*find_packages(include=["slowfast", "slowfast.*"]), *(f"slowfast.{folder}" for folder in BESIDE)],
    package_dir={f"slowfast.{folder}": folder for folder in BESIDE},
    package_data={"": ["**/*.json", "**/*.yaml", "**/*.html", "**/*.jinja", "py.typed"]},
    entry_points={
        "console_scripts": [
            "slowfast-train = slowfast.commands:train",
            "slowfast-prepare = slowfast.commands:prepare",
            "slowfast-demo-data = slowfast.commands:demo_data",
            "slowfast-predict = slowfast.commands:predict",
            "slowfast-features = slowfast.commands:features",
            "slowfast-probe = slowfast.commands:probe",
            "slowfast-export = slowfast.commands:export",
            "slowfast-visualize = slowfast.commands:visualize",
            "slowfast-report = slowfast.commands:report",
            "slowfast-doctor = slowfast.commands:doctor",
        ]
    },
    # `make test-lowest` tests the lower bounds of torch, torchvision, av, timm and submitit together, on Python 3.10.
    # torch and torchvision release in lockstep (torch 2.X with torchvision 0.(X+15)); these are one such pair, and
    # torchvision pins its own torch, so any resolver ends at one.
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "numpy>=1.24",
        "opencv-python-headless>=4.8",
        "Pillow>=10.1",
        # one of three decoders; it has no wheels for other platforms, which use the other two
        'decord>=0.6.0; sys_platform == "linux" and platform_machine == "x86_64"',
        "av>=17.1",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "yacs>=0.1.8",
        "PyYAML>=6",
        "scipy>=1.10",
        "tensorboard>=2.14",
        "matplotlib>=3.8",
        "Jinja2>=3.1",
        "MarkupSafe>=2.1",
        "tqdm>=4.66",
        "submitit>=1.5.1",
        "timm>=1.0.22",
        "safetensors>=0.4",
        "huggingface_hub>=0.24",
    ],
    extras_require={
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.2"],
        "trackers": ["wandb>=0.22", "mlflow>=2.20", "trackio>=0.30"],
        "dev": [
            # needs FFmpeg's shared libraries, and a release for the installed torch
            "torchcodec",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "onnxscript>=0.2",
            # one of the two packages that write all features into one file
            "h5py>=3.8",
            # other programs, whose numbers the tests compare with ours
            "open_clip_torch>=2.30",
            "transformers>=4.40",
            "scikit-learn>=1.4",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "selenium>=4.20",
            # they run the notebook
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "ruff==0.17.*",
            "pyright[nodejs]>=1.1.400",
            "pre-commit>=3.7",
            "codespell>=2.3",
        ],
    },
)
