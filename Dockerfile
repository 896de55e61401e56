# syntax=docker/dockerfile:1
# Breakeven as an image:
#   docker build -t breakeven .
#   docker run --read-only --tmpfs /tmp -v breakeven:/data -v "$PWD/config.yaml:/etc/breakeven/config.yaml:ro" \
#       -p 8000:8000 breakeven
# In a container the configuration says `server: {host: 0.0.0.0}`; the default, 127.0.0.1, nobody outside can reach.
# A release names the base by digest (python:3.11-slim@sha256:...), so that the same commit gives the same image.

FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements/run.txt requirements/run.txt
# Wheels only, with hashes: nothing is compiled, no package's setup code runs, and there is no compiler here.
RUN python -m venv /opt/breakeven \
    && /opt/breakeven/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/run.txt
COPY pyproject.toml README.md ./
COPY proxy proxy
# What only the building needed goes, and with setuptools the last .pth file: every Python that starts runs those,
# which is how litellm 1.82.8 stole credentials (PYSEC-2026-2). The build fails if one is left.
RUN /opt/breakeven/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/breakeven/bin/pip check \
    && /opt/breakeven/bin/pip uninstall --yes setuptools pip \
    && test -z "$(find /opt/breakeven -name '*.pth' -print)"

FROM python:3.11-slim
LABEL org.opencontainers.image.title="Breakeven" \
      org.opencontainers.image.description="OpenAI-compatible gateway that sends each request where the next token is cheapest" \
      org.opencontainers.image.version="0.1.0"
# The ledger is all that is written; everything else may be mounted read-only.
RUN useradd --system --uid 10001 --user-group --home-dir /data --shell /usr/sbin/nologin breakeven \
    && install --directory --owner=breakeven --group=breakeven --mode=0750 /data
COPY --from=build /opt/breakeven /opt/breakeven
# litellm fetches a price list from the internet when imported, unless told to use its own.
ENV PATH=/opt/breakeven/bin:$PATH \
    LITELLM_LOCAL_MODEL_COST_MAP=True \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# `ledger: sqlite:///data/ledger.db` is relative to the folder the gateway starts in: here it is the volume.
WORKDIR /
USER 10001:10001
VOLUME ["/data"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["breakeven"]
CMD ["serve", "--config", "/etc/breakeven/config.yaml"]
