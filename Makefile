# The targets need Rust, and for the library of ONNX Runtime Python 3 with access to its package index.
PYTHON ?= python3

.PHONY: venv test demo clean

venv: .venv/.stamp

# Windows puts the executables of a virtual environment elsewhere; `make` there needs a Unix-like shell anyway.
.venv/.stamp: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

test: venv
	cargo test

demo: venv
	cargo build --release
	target/release/onnx-diffprune prune fixtures/ddpm_fashion16.onnx --ratio 0.3 --output demo-output/

clean:
	cargo clean
	rm -rf .venv demo-output
