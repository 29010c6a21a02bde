"""The main job on an embedded default: tests on rendered clips what each part of the method is worth.

    python -m demo.synthetic.run --output_dir demo_output

Needs no network and no GPU: clips are rendered here, and the CLIP to start from lies beside this file. Two tracks have
the same rows: on *What* classes differ in what is seen, on *Order* in the verb alone (track_classes.py). The visual
tower stays as it is, so each clip is encoded once, and what trains is the temporal transformer. An interrupted demo
goes on where it stopped.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from clipfsar.options import option, parse_options
from demo.synthetic.track_plots import plot_track
from demo.synthetic.tracks import TrackSettings, run_tracks


@dataclass
class Arguments:
    output_dir: str = option("demo_output", "Folder for results and pictures.")
    num_seeds: int = option(3, "Trainings of each row, with other seeds.")
    num_workers: int | None = option(None, "Processes; by default one per core. Results do not depend on it.")


def main(arguments: Arguments):
    start = time.perf_counter()
    output_dir = Path(arguments.output_dir)
    settings = TrackSettings(num_seeds=arguments.num_seeds)
    results = run_tracks(output_dir, settings, num_workers=arguments.num_workers)
    pictures = {name: output_dir / f"{name}.png" for name in results["tracks"]}
    for name, picture in pictures.items():
        plot_track(results["tracks"][name], picture)
    print(f"\n{results['table']}\n")
    print(f"{time.perf_counter() - start:.0f} s. Look at {' and '.join(map(str, pictures.values()))}.")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
