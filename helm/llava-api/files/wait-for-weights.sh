# Waits for the file $0, which the download's Job makes last. After $DEADLINE_SECONDS it fails, so that the pod shows it.
waited=0
until [ -e "$0" ]; do
  if [ "$waited" -ge "$DEADLINE_SECONDS" ]; then
    echo "The weights of $MODEL are not there after $waited s: the download failed or is slow. What it said: $LOGS" >&2
    exit 1
  fi
  if expr "$waited" % 60 = 0 > /dev/null; then
    echo "Waiting for the download of $MODEL ($waited of at most $DEADLINE_SECONDS s). What it says: $LOGS"
  fi
  sleep 5
  waited=`expr "$waited" + 5`
done
echo "The weights of $MODEL are there."
