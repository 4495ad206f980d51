#!/usr/bin/env python3
"""Move the weights of an ONNX file into `<file>_data` beside it, as published models above 2 GiB have them.

    make_external_data.py FILE.onnx [--threshold BYTES]

The file is rewritten in place. Tensors under the threshold stay inside, so both kinds occur in one file.
"""
import argparse
import os

import onnx


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("file")
    ap.add_argument("--threshold", type=int, default=1024, help="smallest tensor to move, in bytes")
    a = ap.parse_args()
    model = onnx.load(a.file)
    location = os.path.basename(a.file) + "_data"
    data = os.path.join(os.path.dirname(a.file), location)
    if os.path.exists(data):
        os.remove(data)                              # onnx appends to what is there
    onnx.save(model, a.file, save_as_external_data=True, all_tensors_to_one_file=True, location=location,
              size_threshold=a.threshold, convert_attribute=False)
    os.chmod(data, 0o644)
    print(f"{a.file}: {os.path.getsize(a.file)} bytes, {location}: {os.path.getsize(data)} bytes")


if __name__ == "__main__":
    main()
