# A run that classifies images without TensorFlow: onnxruntime, Pillow and NumPy.
#
#   python scripts/export.py --run runs/RUN --format onnx
#   docker build -f docker/runtime.Dockerfile --build-arg RUN=runs/RUN -t classifier .
#   docker run --rm -v "$PWD/photos:/photos:ro" classifier /photos

FROM python:3.13-slim
ARG RUN
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app
WORKDIR /app
COPY constraints.txt constraints.txt
RUN pip install --no-cache-dir --no-compile -c constraints.txt onnxruntime pillow numpy
COPY template template
COPY scripts/predict.py scripts/predict.py
COPY ${RUN}/export run/export
USER nobody
ENTRYPOINT ["python", "scripts/predict.py", "--run", "run", "--runtime", "onnx"]
