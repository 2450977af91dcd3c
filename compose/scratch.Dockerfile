# The same from static binaries and nothing else, where no image can be pulled. `cargo xtask compose-images` prepares the
# directory that it is built from, and builds it.
FROM scratch AS writer
COPY highwater-compose-writer /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["highwater-compose-writer"]

FROM scratch AS nats
# The health check of nats-server is `highwater ping --nats`.
COPY nats-server highwater /usr/local/bin/
COPY --chown=65532:65532 data/ /data/
USER 65532:65532
CMD ["nats-server", "--jetstream", "--store_dir", "/data"]

FROM scratch AS highwater
COPY highwater /usr/local/bin/
COPY --chown=65532:65532 data/ /var/lib/highwater/
USER 65532:65532
ENTRYPOINT ["highwater"]
