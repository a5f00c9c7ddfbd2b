"""What is registered and learned from: manifests of pairs."""
