"""Trained models at work: sound to text, without the packages of the server."""
