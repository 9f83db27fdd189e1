# The two set-up commands: `make demo` and `make test`. They need Rust, Python 3 and pip, and install what else they
# need into this folder (.venv).
PYTHON ?= python3
TOOL = target/release/onnx-diffprune

.PHONY: venv demo test clean

venv: .venv/.stamp

.venv/.stamp: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: venv
	cargo build --release
	mkdir -p demo-output
	$(TOOL) fixtures/ddpm_fashion16.onnx demo-output/pruned.onnx --ratio 0.5

test: venv
	cargo test
	mkdir -p target/checked
	.venv/bin/python scripts/check_models.py --tool target/debug/onnx-diffprune --models fixtures \
		--ratios 0.25,0.5,0.75 --out target/checked --save target/checked.json
	.venv/bin/python scripts/check_models.py --tool target/debug/onnx-diffprune --models fixtures/architectures \
		--ratios 0.5 --jobs 2 --expected fixtures/architectures/shares.json \
		--out target/skeletons --save target/skeletons.json

clean:
	cargo clean
	rm -rf .venv .venv-trt demo-output
