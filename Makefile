# Each target is one line into scripts/ or cargo.
.PHONY: demo test lint fuzz bench bench-node clean

# The whole system on this machine. PROVIDER=aws for the AWS half, KEEP=1 to leave it running.
demo:
	@scripts/demo

# Everything, unit tests to lab.
test:
	@scripts/test

# Formatting, clippy, dependency rules, file sizes.
lint:
	@scripts/lint

# Hostile bytes for everything that reads bytes. TIME=60 seconds for each of the targets.
fuzz:
	@scripts/fuzz

# Figures beside the peers', interleaved, median and spread.
bench:
	@scripts/bench

# Of these, node-agent beside kube-proxy alone, with more sizes and shapes of Services.
bench-node:
	@scripts/bench node

clean:
	cargo clean
	rm -rf .venv .lab
