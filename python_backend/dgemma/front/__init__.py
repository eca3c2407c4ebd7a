"""The HTTP front: NIM's and OpenAI's endpoints, spoken to Triton over gRPC."""
