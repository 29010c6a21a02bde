"""The main job on an embedded default: a first answer, what each part of the method is worth, and one training.

    python -m demo.synthetic.run --output_dir demo_output

Needs no network and no GPU: clips are rendered here, and the CLIP to start from lies beside this file.

1. A few clips are enrolled and others classified, within seconds (first_answer.py).
2. Two tracks with the same rows: on *What* classes differ in what is seen, on *Order* in the verb alone
   (track_classes.py). The visual tower is frozen, so each clip is encoded once; the temporal transformer trains.
3. One training from video files to a folder for the Hub (end_to_end.py).

`index.html` in the output folder shows all of it. An interrupted demo goes on where it stopped.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipfsar.options import option, parse_options
from demo.synthetic.end_to_end import end_to_end
from demo.synthetic.first_answer import first_answer, in_words
from demo.synthetic.quiet import quiet
from demo.synthetic.report import write_report
from demo.synthetic.track_classes import TRACKS, Track
from demo.synthetic.track_episode import draw_episode
from demo.synthetic.track_jobs import check_options
from demo.synthetic.track_plots import plot_track
from demo.synthetic.tracks import TrackSettings, run_tracks


@dataclass
class Arguments:
    output_dir: str = option("demo_output", "Folder for clips, results, the trained model and pictures.")
    num_seeds: int = option(3, "Trainings of each row of the tracks, with other seeds.")
    num_workers: int | None = option(None, "Processes; by default one per core. Results do not depend on it.")

    def __post_init__(self):
        check_options(self)


def main(arguments: Arguments):
    start = time.perf_counter()
    output_dir = Path(arguments.output_dir)
    print("=== A first answer: four clips of each class were shown, nothing was trained", flush=True)
    with quiet():
        answers = first_answer(output_dir / "first_answer")
    print(f"{in_words(answers)}\n  Why: {output_dir / 'first_answer' / 'why.png'}\n", flush=True)

    print("=== What is each part of the method worth? Two tracks; progress bars estimate the time", flush=True)
    settings = TrackSettings(num_seeds=arguments.num_seeds)
    results = run_tracks(output_dir, settings, num_workers=arguments.num_workers)
    with quiet():
        draw_tracks(output_dir, results, settings, TRACKS)
    print(f"\n{results['table']}\n", flush=True)

    print(
        "=== One training: video files -> frames -> episodes -> checkpoint -> folder for the Hub -> answer", flush=True
    )
    run = end_to_end(output_dir, arguments.num_workers)
    page = write_report(output_dir, results, answers, run, time.perf_counter() - start)
    print(f"\n{time.perf_counter() - start:.0f} s. Open {page}; the trained model is {output_dir / 'run' / 'best'}.")


def draw_tracks(output_dir: Path, results: dict, settings: TrackSettings, tracks: Sequence[Track]):
    """`TRACK.png` and `TRACK_episode.png` of each track."""
    for track in tracks:
        plot_track(results["tracks"][track.name], output_dir / f"{track.name}.png")
        draw_episode(output_dir, track, settings, output_dir / f"{track.name}_episode.png")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
