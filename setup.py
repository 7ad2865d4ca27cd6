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
    python_requires=">=3.10,<3.14",
    # The wheel holds the experiments and tools, which a checkout has beside the package.
    packages=[*find_packages(include=["slowfast", "slowfast.*"]), *(f"slowfast.{folder}" for folder in BESIDE)],
    package_dir={f"slowfast.{folder}": folder for folder in BESIDE},
    package_data={"": ["**/*.json", "**/*.yaml", "**/*.html", "py.typed"]},
    entry_points={
        "console_scripts": [
            "slowfast-train = slowfast.commands:train",
            "slowfast-prepare = slowfast.commands:prepare",
            "slowfast-demo-data = slowfast.commands:demo_data",
            "slowfast-predict = slowfast.commands:predict",
            "slowfast-features = slowfast.commands:features",
