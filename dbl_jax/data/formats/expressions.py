"""The seven basic expressions, under the names that data sets give them."""

# The order of FER2013 and ExpW.
FER2013_NAMES = (
  "angry", "disgust", "fear", "happy", "sad", "surprise", "neutral",
)  # fmt: skip
RAF_DB_NAMES = (
  "surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral",
)  # fmt: skip
# Images per class in RAF-DB (Li, Deng & Du 2017).
RAF_DB_COUNTS = {
  "train": (1290, 281, 717, 4772, 1982, 705, 2524),
  "test": (329, 74, 160, 1185, 478, 162, 680),
}
_SYNONYMS = {
  "surprised": "surprise",
  "afraid": "fear",
  "fearful": "fear",
  "happy": "happiness",
  "sad": "sadness",
  "angry": "anger",
} | {name: name for name in RAF_DB_NAMES}


def noun(name: str) -> str:
  """Returns the RAF-DB name of an expression: 'Happy' is 'happiness'.

  A name that is none of the seven is returned unchanged.
  """
  return _SYNONYMS.get(name.lower(), name)
