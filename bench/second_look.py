"""Measure detection with a second look against detection in one pass.

    python bench/second_look.py [--config configs/aligned.yaml] [--size 192] [--batch-size 16] [--device cuda]
    python bench/second_look.py --config configs/lvis_base_rn50.yaml --size 800 --classes 1203 --device cuda

Random images and unit text rows, a fresh detector, no score threshold, so that every image has the largest number of
boxes to look at: the most that a second look can cost. One pass, one crop per box and three crops per box take turns,
each from images in memory to boxes.
"""

from functools import partial

from inputs import argument_parser, build_bench_detector
from measured import measure_medians, save

from ovd.build.crops import build_second_look
from ovd.inference import ImageBatch
from ovd.model.detection_options import DetectionOptions, SecondLookOptions
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine

VIEWS = {"one crop": ((1.1, 1.0),), "three crops": ((1.0, 1.0), (1.3, 1.0), (1.15, 0.75))}


def main() -> None:
    parser = argument_parser(__doc__, config="configs/aligned.yaml", batch_size=16)
    parser.add_argument("--classes", type=int, default=287, help="names to detect (%(default)s)")
    parser.add_argument("--crops", type=int, default=20, help="boxes of an image to look at (%(default)s)")
    arguments = parser.parse_args()
    bench = build_bench_detector(arguments.config, arguments.device)
    config = bench.config
    batch = bench.batch(arguments.batch_size, arguments.size, arguments.classes)
    images = ImageBatch(batch.images, batch.sizes, batch.sizes)
    queries = QueryTexts(bench.text(arguments.classes))
    options = DetectionOptions(
        score_threshold=0.0, nms_iou=0.6, max_detections=300, candidates=1000, competition=config.eval.competition
    )
    forms = {"one pass": bench.inference(size=arguments.size, options=options)}
    for name, views in VIEWS.items():
        look = SecondLookOptions(crops=arguments.crops, views=views)
        forms[name] = bench.inference(
            size=arguments.size,
            options=options.model_copy(update={"second_look": look}),
            second_look=build_second_look(config, look),
        )
    calls = {name: partial(one.detect, queries, images) for name, one in forms.items()}
    seconds = measure_medians(calls, arguments.device)
    result = {
        "machine": describe_machine(arguments.device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "seconds": {name: round(median, 4) for name, median in seconds.items()},
        "ratio": {name: round(seconds[name] / seconds["one pass"], 3) for name in VIEWS},
    }
    print(result)
    save(f"second_look_{arguments.config.stem}", result, arguments.device)


if __name__ == "__main__":
    main()
