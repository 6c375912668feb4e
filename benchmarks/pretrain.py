"""Train the small network that ships with the package, on generated series only.

    python -m benchmarks.pretrain --folder runs/pretrained --out FILE
    python -m benchmarks.pretrain --start FILE --growth --seed 1 --lr 1e-3 --steps 5500 --folder runs/growth --out OTHER

    python -m benchmarks.pretrain --average OTHER ANOTHER A_THIRD --out WEIGHTS

A run goes on where it was stopped, and writes the weights when done. The second one trains a written network further,
on other series, some of which grow; the third one writes the mean of the weights of several such: what ships.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from xlstm_forecast.checkpoint import load_checkpoint
from xlstm_forecast.encoder import EncoderConfig
from xlstm_forecast.pretrained.learning import LearningConfig, Run, averaged, keep, read
from xlstm_forecast.pretrained.network import NetworkConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/pretrained"), help="where the run is kept")
    parser.add_argument("--out", type=Path, required=True, help="file of the weights")
    parser.add_argument("--blocks", default="ss")
    parser.add_argument("--d-model", type=int, default=192)
    parser.add_argument("--num-heads", type=int, default=6)
    parser.add_argument("--steps", type=int, default=LearningConfig.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=LearningConfig.lr)
    parser.add_argument("--growth", action="store_true", help="with series that grow as prices and sales do")
    parser.add_argument("--start", type=Path, help="weights to begin with, of a network of the same sizes")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, to go on later")
    parser.add_argument("--average", type=Path, nargs="+", help="written networks whose mean weights to write")
    args = parser.parse_args()
    if args.average:
        told = [one for path in args.average for one in load_checkpoint(path)[1]["learning"]]
        keep(averaged([read(path) for path in args.average]), args.out, *(LearningConfig(**one) for one in told))
        print(f"wrote {args.out}")
        return
    sizes = EncoderConfig(d_model=args.d_model, num_heads=args.num_heads, blocks=args.blocks)
    config = LearningConfig(steps=args.steps, seed=args.seed, lr=args.lr, growing=args.growth)
    run = Run(NetworkConfig(encoder=sizes), config, args.folder)
    if args.start is not None and run.step == 0:
        run.begin(read(args.start))
    start, spent = time.monotonic(), time.process_time()

    def report(step: int, loss: float) -> None:
        passed, used = time.monotonic() - start, time.process_time() - spent
        print(f"step {step:6d}  loss {loss:.4f}  {passed:.0f} s, {used:.0f} s of CPU", flush=True)

    if run.go_on(report, 60 * args.minutes):
        keep(run.average, args.out, config)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
