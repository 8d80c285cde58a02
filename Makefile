# Everyday verbs over CMake; `make help` lists them.
BUILD      ?= build
PROMPT     ?= a rocket flies up over a blue background
OUT        ?= out
PREFIX     ?= /usr/local
TIER       ?= full
JOBS       ?= $(shell nproc)
CONFIGURE  := cmake -S . -DCMAKE_INSTALL_PREFIX=$(PREFIX)
CTEST      := ctest --output-on-failure -j $(JOBS) --test-dir

.PHONY: all demo test test-fast test-full bench lint fuzz docs format install clean help

all: ## build the command and the libraries into build/
	@scripts/install-deps.sh build
	@$(CONFIGURE) -B $(BUILD) -DHLA_TESTS=OFF >/dev/null
	@cmake --build $(BUILD) -j $(JOBS)

demo: all ## turn a sentence into a short video: make demo [PROMPT="..."]
	@scripts/install-deps.sh demo
	@mkdir -p $(OUT)
	$(BUILD)/hla generate "$(PROMPT)" -o $(OUT)/demo.mp4

ifeq ($(SANITIZE),thread)
test:
	@scripts/install-deps.sh test
	@scripts/test-threads.sh build-thread
else ifdef SANITIZE
test: ## everything checked: make test [TIER=fast] or [SANITIZE=1], [SANITIZE=thread]
	@scripts/install-deps.sh test
	@$(CONFIGURE) -B build-sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo -DHLA_SANITIZE=address,undefined >/dev/null
	@cmake --build build-sanitize -j $(JOBS) | tail -n 1
	$(CTEST) build-sanitize
else
test: test-$(TIER)
endif

test-fast:
	@scripts/install-deps.sh test
	@$(CONFIGURE) -B $(BUILD) -DHLA_TESTS=ON >/dev/null
	@cmake --build $(BUILD) -j $(JOBS)
	$(CTEST) $(BUILD) -L fast

# The slow checks first, so that the test runner's summary closes the log.
test-full:
	@scripts/install-deps.sh full
	@$(CONFIGURE) -B $(BUILD) -DHLA_TESTS=ON >/dev/null
	@cmake --build $(BUILD) -j $(JOBS)
	@$(MAKE) --no-print-directory lint
	@scripts/test-alone.sh build-alone
	@scripts/test-aarch64.sh build-aarch64
	@$(MAKE) --no-print-directory test SANITIZE=1
	@scripts/test-threads.sh build-thread
	@scripts/test-valgrind.sh $(BUILD)
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory fuzz
	$(CTEST) $(BUILD)

bench: all ## measure the operator against oneDNN and softmax, and a clip with both attentions
	$(BUILD)/hla bench attention
	$(BUILD)/hla bench generate

lint: ## clang-tidy and cppcheck over the sources
	@run-clang-tidy -quiet -p $(BUILD) -j $(JOBS) '^$(CURDIR)/((build/)?attention|video|cli)/.*\.c$$' >$(BUILD)/tidy.log 2>&1 \
	    || { cat $(BUILD)/tidy.log; exit 1; }
	@cppcheck -q -j $(JOBS) --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
	    -D_GNU_SOURCE -I include -I . attention video cli
	@echo "lint: clean"

SECONDS_EACH ?= 60
fuzz: ## libFuzzer on the readers of untrusted files and on libhla, 60 s each
	@scripts/fuzz.sh $(SECONDS_EACH)

docs: ## HTML and manual pages of libhla's functions, into build-docs/
	@scripts/install-deps.sh docs
	@scripts/docs.sh build-docs

format: ## clang-format in place
	@git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format -i

install: all ## install under PREFIX (DESTDIR is honoured)
	@cmake --install $(BUILD)

clean: ## remove every build folder
	@rm -rf build build-sanitize build-alone build-aarch64 build-fuzz build-thread build-docs

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
