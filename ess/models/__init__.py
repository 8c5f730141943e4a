"""The networks: encoders, decoders and class embeddings."""
