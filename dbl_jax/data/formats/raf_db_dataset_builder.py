"""RAF-DB for tensorflow-datasets, written from the files its authors send.

Training does not need it: `data.name=raf_db` reads the files directly.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from dbl_jax.data.datasets import RAF_DB_NAMES
from dbl_jax.data.formats import raf_db
from dbl_jax.data.formats.listing import Listing, Record

_DESCRIPTION = """
RAF-DB, the Real-world Affective Faces Database, basic emotions: 15,339 faces
from the Internet, aligned to 100 x 100 pixels, each with the emotion that most
of about 40 annotators saw. The classes are long-tailed: 17 happy faces to one
afraid in the training part, and 16 to one in the test part.
"""

_CITATION = """
@inproceedings{li2017reliable,
  title = {Reliable Crowdsourcing and Deep Locality-Preserving Learning for
           Expression Recognition in the Wild},
  author = {Li, Shan and Deng, Weihong and Du, JunPing},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  pages = {2584--2593},
  year = {2017}
}
"""

_HOMEPAGE = "http://www.whdeng.cn/RAF/model1.html"


class RafDb(tfds.core.GeneratorBasedBuilder):
  """RAF-DB's basic emotions, with its authors' split and class order."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  RAF-DB is for non-commercial research and may not be passed on: ask its
  authors for it, as its homepage says. Then put into manual_dir either
  `basic.zip`, or what is in it:
    basic/EmoLabel/list_patition_label.txt
    basic/Image/aligned/train_00001_aligned.jpg and so on
    (or basic/Image/aligned.zip as it comes)
  """

  def __init__(self, *, listing: Listing | None = None, **kwargs: Any):
    """Constructs the builder of a listing, by default of manual_dir's."""
    self._listing = listing
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      # Bytes are stored as they come; channels=3 makes grey files RGB.
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.ClassLabel(names=RAF_DB_NAMES),
      "file_name": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=("image", "label"),
      homepage=_HOMEPAGE,
      citation=_CITATION,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    found = self._listing or raf_db.find(Path(dl_manager.manual_dir))
    return {
      split: self._generate_examples(records)
      for split, records in found.splits.items()
    }

  def _generate_examples(
    self, records: Iterable[Record]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, label, file, _ in records:
      yield name, {"image": file.read(), "label": label, "file_name": name}
