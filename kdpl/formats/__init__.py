"""Further formats of exported files: 8 and 16 bits, OpenVINO, ExecuTorch, torch.export."""
