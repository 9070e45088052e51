"""The libraries that run a network: TensorFlow, ONNX Runtime, OpenVINO and LiteRT."""
