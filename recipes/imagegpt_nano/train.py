"""Trains imagegpt-nano on pictures that are drawn into files first, each seen once: ``modelwright train`` on run.yaml.

    python -m recipes.imagegpt_nano.train --out runs/imagegpt-nano

The same command goes on where it was stopped.
"""

import argparse
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modelwright import ImageGPTForCausalImageModeling
from modelwright.cli.train import TrainOptions, run_train
from recipes.imagegpt_nano.draw import as_images, draw_pictures
from recipes.imagegpt_nano.model import build_config, build_processor, save

RUN = Path(__file__).with_name("run.yaml")
SHARD = 10_000  # pictures in a file


def write_pictures(folder: Path, count: int, seed: int, shard: int = SHARD) -> None:
    """Draw ``count`` pictures into tars of ``shard`` each; a file that is there is whole, and stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, count, shard)):
        file = folder / f"pictures-{number:04d}.tar"
        if file.exists():
            continue
        drawn = draw_pictures(np.random.default_rng([seed, number]), min(shard, count - first))
        part = file.with_suffix(".part")
        with tarfile.open(part, "w") as archive:
            for place, picture in enumerate(as_images(drawn.tokens)):
                content = io.BytesIO()
                Image.fromarray(picture).save(content, "PNG")
                info = tarfile.TarInfo(f"{number:04d}{place:06d}.png")
                info.size = content.tell()
                content.seek(0)
                archive.addfile(info, content)
        part.replace(file)


def write_first(folder: Path, seed: int) -> None:
    """An untrained model, with what reads its pictures."""
    torch.manual_seed(seed)
    ImageGPTForCausalImageModeling(build_config()).save_pretrained(folder)
    build_processor().save_pretrained(folder)


def main() -> None:
    """Draw, train, and write the official folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/imagegpt-nano"), help="the folder to write")
    parser.add_argument("--resume", type=Path, help="start from the weights of this folder; give another seed as well")
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and of the first weights")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run, such as optimizer.lr=1e-3")
    args = parser.parse_args()
    rows, output, first = args.out / "pictures", args.out / "run", args.resume or args.out / "first"
    write_pictures(rows, args.pictures, args.seed)
    if not first.exists():
        write_first(first, args.seed)
    places = (f"model.path={first.absolute()}", f"data.root={rows.absolute()}", f"output={output}")
    if code := run_train(TrainOptions(RUN, (*places, *args.overrides))):
        sys.exit(code)
    trained = ImageGPTForCausalImageModeling.from_pretrained(output / "export", dtype=torch.float32)
    save(trained, args.out)


if __name__ == "__main__":
    main()
