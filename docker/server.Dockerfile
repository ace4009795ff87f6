# A run that is served over HTTP without TensorFlow: onnxruntime, Pillow, NumPy, FastAPI and uvicorn.
#
#   python scripts/export.py --run runs/RUN --format onnx
#   docker build -f docker/server.Dockerfile --build-arg RUN=runs/RUN -t classifier-server .
#   docker run --rm --read-only --cap-drop ALL -p 127.0.0.1:8000:8000 classifier-server
#
# For others than this machine, behind a server that speaks HTTPS: -v "$PWD/token:/token:ro" before the name of the image,
# and --token-file /token after it. Nothing is written, and the run belongs to root, as who nothing runs.

FROM python:3.13-slim
ARG RUN
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app
WORKDIR /app
COPY constraints.txt constraints.txt
RUN pip install --no-cache-dir --no-compile -c constraints.txt \
    onnxruntime pillow numpy fastapi uvicorn python-multipart prometheus-client
COPY template template
COPY scripts/serve.py scripts/serve.py
COPY ${RUN}/export run/export
USER nobody
EXPOSE 8000
HEALTHCHECK --start-period=30s --timeout=10s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
ENTRYPOINT ["python", "scripts/serve.py", "--run", "run", "--host", "0.0.0.0"]
