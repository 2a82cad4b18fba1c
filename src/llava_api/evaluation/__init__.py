"""The scores of benchmarks from files of answers, as the benchmarks' official scripts and LLaVA's compute them."""
