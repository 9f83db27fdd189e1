# The main targets are `make demo` and `make test`. They need Rust, Python 3 and pip, and install all other requirements
# into .venv of this folder.
PYTHON ?= python3
TOOL = target/release/onnx-diffprune
SCHEDULER = --scheduler-config fixtures/ddpm_fashion16/scheduler_config.json

# The programs in which `make check-clients` runs pruned pipelines.
CLIENTS ?= openvino,web,optimum

.PHONY: venv demo test check-training check-clients check-wheel check-integrations clean

venv: .venv/.stamp

.venv/.stamp: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: venv
	cargo build --release
	mkdir -p demo-output
	$(TOOL) fixtures/ddpm_fashion16.onnx demo-output/pruned.onnx --ratio 0.3 --timesteps 100 \
		--data fixtures/ddpm_fashion16/train_images.npy $(SCHEDULER) --report demo-output/report.html
	$(TOOL) apply fixtures/ddpm_fashion16.onnx demo-output/pruned.plan.json demo-output/cut.onnx
	$(TOOL) sample fixtures/ddpm_fashion16.onnx -o demo-output/original.png $(SCHEDULER)
	$(TOOL) sample demo-output/cut.onnx -o demo-output/cut.png $(SCHEDULER)
	$(TOOL) sample demo-output/pruned.onnx -o demo-output/pruned.png $(SCHEDULER)
	$(TOOL) finetune demo-output/pruned.onnx demo-output/tuned.onnx --teacher fixtures/ddpm_fashion16.onnx --steps 200 \
		--data fixtures/ddpm_fashion16/train_images.npy $(SCHEDULER)
	$(TOOL) sample demo-output/tuned.onnx -o demo-output/tuned.png $(SCHEDULER)

test: venv
	cargo test
	.venv/bin/python scripts/check_precision.py --gradient-graph target/debug/examples/gradient_graph
	.venv/bin/python scripts/check_lowering.py --lowered target/debug/examples/lowered --allow-unlowered
	.venv/bin/python scripts/element_types.py --check
	.venv/bin/python scripts/check_deploy.py --tool target/debug/onnx-diffprune
	.venv/bin/python scripts/check_action.py --tool target/debug/onnx-diffprune
	mkdir -p target/checked
	.venv/bin/python scripts/check_models.py --tool target/debug/onnx-diffprune --models fixtures \
		--ratios 0.25,0.5,0.75 --out target/checked --save target/checked.json
	.venv/bin/python scripts/check_models.py --tool target/debug/onnx-diffprune --models fixtures/architectures \
		--ratios 0.5 --jobs 2 --expected fixtures/architectures/shares.json \
		--out target/skeletons --save target/skeletons.json

# Checks the training artifacts with the last release of ONNX Runtime that has a training API, in .venv-training. Skipped if its
# wheel is not available.
check-training:
	@$(PYTHON) scripts/check_training.py --setup; code=$$?; \
	if [ $$code -eq 3 ]; then echo "check-training was skipped: pip can't install the wheel here"; exit 0; fi; \
	if [ $$code -ne 0 ]; then exit $$code; fi; \
	cargo build --bin onnx-diffprune --example gradient_graph && \
	$(PYTHON) scripts/check_training.py --tool target/debug/onnx-diffprune \
		--gradient-graph target/debug/examples/gradient_graph

# Runs pruned pipelines in the programs that load them, installed into .clients. Programs that can't be installed are skipped.
check-clients: venv
	@$(PYTHON) scripts/check_clients.py --setup --clients $(CLIENTS); code=$$?; \
	if [ $$code -eq 3 ]; then echo "check-clients was skipped: none of $(CLIENTS) can be installed here"; exit 0; fi; \
	if [ $$code -ne 0 ]; then exit $$code; fi; \
	cargo build --bin onnx-diffprune && \
	$(PYTHON) scripts/check_clients.py --tool target/debug/onnx-diffprune --clients $(CLIENTS)

# Builds the Python package, installs it as users do, and tests it, in target/wheel. Skipped if its packages are not available.
check-wheel:
	@$(PYTHON) scripts/check_wheel.py; code=$$?; \
	if [ $$code -eq 3 ]; then echo "check-wheel was skipped: its packages can't be installed here"; exit 0; fi; \
	exit $$code

# Tests the wheel of `make check-wheel`, or WHEEL, in Olive and optimum, installed into .clients as for check-clients. This takes
# 4.4 GB, so .ci/run does not run it. Skipped if the packages are not available.
check-integrations:
	@$(PYTHON) scripts/check_integrations.py $(if $(WHEEL),--wheel $(WHEEL)); code=$$?; \
	if [ $$code -eq 3 ]; then echo "check-integrations was skipped: its packages can't be installed here"; exit 0; fi; \
	exit $$code

clean:
	cargo clean
	rm -rf .venv .venv-trt .venv-training .clients demo-output
