"""The demo: a first answer, a comparison of the method's parts, and one training, on rendered clips.

    python -m demo.synthetic.run --output_dir demo_output

It needs no network and no GPU: it renders the clips and starts from the tiny CLIP next to this file.

1. It enrolls a few clips and classifies others within seconds (first_answer.py).
2. It compares the parts of the method on two tracks (track_classes.py). On *What*, classes differ in what is seen; on
   *Order*, only in the verb. The visual tower is frozen, so each clip is encoded once; the temporal transformer trains.
3. It trains once, from video files to a folder for the Hub (end_to_end.py).

`index.html` in the output folder shows all results. An interrupted demo continues where it stopped.
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
    num_seeds: int = option(3, "Number of seeds, and so of trainings of each row of the tracks.")
    num_workers: int | None = option(None, "Processes; by default one per core. Results do not depend on them.")

    def __post_init__(self):
        check_options(self)


def main(arguments: Arguments):
    start = time.perf_counter()
    output_dir = Path(arguments.output_dir)
    print("=== A first answer: four clips per class are enrolled, nothing is trained", flush=True)
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
    """Draws `TRACK.png` and `TRACK_episode.png` of each track."""
    for track in tracks:
        plot_track(results["tracks"][track.name], output_dir / f"{track.name}.png")
        draw_episode(output_dir, track, settings, output_dir / f"{track.name}_episode.png")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
