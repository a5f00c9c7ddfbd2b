"""From a user's files to results: registering, saving with proof, applying, demonstrating."""
