"""Readers of corpora: each turns a folder or a table into `Utterance`s."""
