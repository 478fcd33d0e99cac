"""The seven basic expressions, by whatever name a data set has for them."""

# In the order that FER2013 began and ExpW took over.
FER2013_NAMES = (
  "angry",
  "disgust",
  "fear",
  "happy",
  "sad",
  "surprise",
  "neutral",
)
_NAMES = {
  "surprise": ("surprise", "surprised"),
  "fear": ("fear", "afraid", "fearful"),
  "disgust": ("disgust", "disgusted"),
  "happiness": ("happiness", "happy"),
  "sadness": ("sadness", "sad"),
  "anger": ("anger", "angry"),
  "neutral": ("neutral",),
}
_NOUNS = {word: noun for noun, words in _NAMES.items() for word in words}


def noun(name: str) -> str:
  """RAF-DB's word for an expression: 'Happy' is 'happiness'.

  Args:
    name: any spelling.

  Returns:
    One of RAF-DB's class names, or the name as it is if it is none of them.
  """
  return _NOUNS.get(name.lower(), name)
