"""Writes a few events with TensorBoard's own writer, for the test of src/metrics/tensorboard.rs:
fixtures/events/reference.tfevents, with pixel.png in it. Then reads the file with TensorBoard's reader. With folders as
arguments, prints what TensorBoard reads from them.

Needs the packages tensorboard and pillow.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "events"


def scalars(time: float, step: int, **values: float) -> Event:
    value = [Summary.Value(tag=tag.replace("_", "/"), simple_value=number) for tag, number in values.items()]
    return Event(wall_time=time, step=step, summary=Summary(value=value))


def write() -> None:
    OUT.mkdir(exist_ok=True)
    png = io.BytesIO()
    Image.new("RGB", (1, 1), (255, 128, 0)).save(png, "PNG")
    (OUT / "pixel.png").write_bytes(png.getvalue())
    image = Summary.Image(height=1, width=1, colorspace=3, encoded_image_string=png.getvalue())
    events = [
        Event(wall_time=1000.5, file_version="brain.Event:2"),
        scalars(1001.0, 0, loss_train=0.0, rate=-1.5),
        scalars(1002.0, 300, loss_train=0.25),
        Event(wall_time=1003.0, step=300, summary=Summary(value=[Summary.Value(tag="samples", image=image)])),
        Event(wall_time=1004.0, step=200, session_log=SessionLog(status=SessionLog.START)),
        scalars(1005.0, 200, loss_train=0.125),
    ]
    with (OUT / "reference.tfevents").open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))


def read(folder: Path) -> tuple[dict, dict]:
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    curves = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: [(image.step, image.width, image.height) for image in events.Images(tag)] for tag in tags["images"]}
    return curves, images


def main() -> None:
    if sys.argv[1:]:
        for folder in sys.argv[1:]:
            print(folder, *read(Path(folder)))
        return
    write()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(OUT / "reference.tfevents", Path(folder) / "events.out.tfevents.1000.reference")
        curves, images = read(Path(folder))
    # The restart at step 200 invalidates step 300.
    assert curves == {"loss/train": [(0, 0.0), (200, 0.125)], "rate": [(0, -1.5)]}, curves
    assert images == {"samples": []}, images


if __name__ == "__main__":
    main()
