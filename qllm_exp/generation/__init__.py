"""Generation of credit-assignment functions by a language model: prompts, procedure, verification and storage."""
