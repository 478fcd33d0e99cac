"""Losses: functions of a batch; `terms` lists them."""
