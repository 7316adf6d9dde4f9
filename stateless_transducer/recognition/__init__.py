"""Floor 5: trained models at work: sound to text, without the packages of the server."""
