# crewline with Kafka and Redis, and the support crew to try it with: docker build -t crewline .
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY platform platform
COPY agents agents
COPY tools tools
COPY memory memory
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt '.[kafka,redis,openai,telemetry]'

# Put a crew of your own here: FROM crewline, COPY my-crew /crew.
WORKDIR /crew
RUN cp -r /src/configs/crews/support/. /crew && rm -rf /src \
 && useradd --system --uid 10001 crewline && install -d -o crewline /state
USER crewline
ENV CREWLINE_STATE=/state PYTHONUNBUFFERED=1

# SIGTERM: what runs comes to its end, and is handed over. Give it longer than --drain and 10 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["crewline"]
CMD ["up", ".", "--offline"]
