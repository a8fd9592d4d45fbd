# Thin names over one-line commands; CONTRIBUTING.md has the plain equivalents.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
DATASET ?= sample
COVERAGE ?=
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout 600 --nbval-sanitize-with tests/nbval_sanitize.cfg

.PHONY: run test test-quick typecheck report demo refresh screenshots constraints data clean
.PHONY: bench bench-towers bench-scale bench-cross bench-peers bench-embedding bench-speedrun bench-ideas bench-gpu bench-robustness

run: $(VENV)/.installed        ## run notebooks 00-08 on the sample into out/, and print the result
	$(BIN)/python notebooks/run.py --dataset $(DATASET)

# COVERAGE=1 also prints which lines no test runs; that takes a fifth more time.
test: $(VENV)/.installed       ## style, types, unit tests, then every notebook against its committed outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -n 2 $(if $(COVERAGE),--cov=minicliplib --cov-report=term)
	TQDM_DISABLE=1 OMP_NUM_THREADS=1 MINICLIP_OUT=$$(mktemp -d) \
		$(BIN)/python -m pytest -n 2 --dist loadscope $(NBVAL) notebooks

test-quick: $(VENV)/.installed ## the quick tests only: under a minute on two cores
	$(BIN)/python -m pytest -n 2 -p no:nbval -m "not slow and not browser"

typecheck: $(VENV)/.installed  ## find wrong calls without running the code
	$(BIN)/basedpyright

report: $(VENV)/.installed     ## build report and slides, HTML and PDF, from report/results and figures
	$(BIN)/python report/build.py

demo: $(VENV)/.installed       ## serve the page to play with; IMAGES=FOLDER searches your own
	$(BIN)/miniclip demo $(if $(IMAGES),--images "$(IMAGES)") || [ $$? = 130 ] # Ctrl-C is how it ends

refresh: $(VENV)/.installed    ## rerun the notebooks and renew what is committed: outputs, figures, results
	$(BIN)/python notebooks/run.py --dataset $(DATASET) --refresh

screenshots: $(VENV)/.installed ## photograph the demo into figures/demo (needs Chromium)
	$(BIN)/python report/screenshots.py

bench: $(VENV)/.installed      ## print the measured speeds, costs and scores
	$(BIN)/python benchmarks/bench.py

bench-towers: $(VENV)/.installed ## measure every tower on this machine, for the table in RESULTS.md
	$(BIN)/python benchmarks/towers.py

bench-scale: $(VENV)/.installed ## measure search and memory at scale (FAISS too, with the extra "bench")
	$(BIN)/python benchmarks/scale.py

bench-cross: $(VENV)/.installed ## train and test across Flickr8k and COCO (both must be in data/; an hour or two)
	$(BIN)/python benchmarks/cross.py

bench-peers: $(VENV)/.installed ## train beside transformers and open_clip, and be measured by clip_benchmark (an hour)
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/peers.py evaluation --limit 500

bench-embedding: $(VENV)/.installed ## images and captions a second, beside transformers, open_clip and the processor's limit
	$(BIN)/python benchmarks/embedding.py

bench-speedrun: $(VENV)/.installed ## minutes from raw photos to a recall, beside the loops of transformers and open_clip (an hour)
	$(BIN)/python benchmarks/speedrun.py

bench-ideas: $(VENV)/.installed ## learned pooling, and distillation beside a soup (half an hour)
	$(BIN)/python benchmarks/ideas.py

bench-gpu: $(VENV)/.installed ## the towers, the recipe and a full fine-tuning on a GPU (ten minutes; Flickr8k must be in data/)
	$(BIN)/python benchmarks/gpu.py

bench-robustness: $(VENV)/.installed ## the demo's page under twenty visitors at once (two minutes)
	$(BIN)/python benchmarks/robustness.py

constraints: $(VENV)/.installed ## write the versions of this environment into constraints.txt
	grep '^#' constraints.txt > constraints.new
	$(BIN)/python -m pip freeze --exclude-editable | grep -v -E '^(#|nvidia-|cuda-|triton)' >> constraints.new
	mv constraints.new constraints.txt

data: $(VENV)/.installed       ## download Flickr8k into data/
	$(BIN)/miniclip download flickr8k

clean:                         ## delete caches, runs and kept measurements, never datasets
	rm -rf out data/ablations data/peers data/cache data/runs

# The versions of constraints.txt are the ones that last passed every test.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt --editable ".[test]"
	touch $@
