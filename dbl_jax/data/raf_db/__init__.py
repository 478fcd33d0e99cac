"""RAF-DB (Li, Deng & Du 2017): its reader and its tfds builder."""
