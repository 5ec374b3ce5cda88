# The second act of run.sh: the shop runs on backends that are decided, and the broker under it is replaced by editing
# one line, while orders come in. Sourced by run.sh, whose functions and variables it uses.
# shellcheck shell=bash

# Where the regulars listen.
readonly REGULARS_PORT=6104
# Seconds that anything here may take before it counts as broken.
readonly ACT_TWO_PATIENCE=90
# Orders that are to be taken on either side of the edit.
readonly ACT_TWO_ORDERS=40
# The apps whose sidecars have the broker, the regulars too.
readonly ACT_TWO_APPS=(checkout inventory shipping regulars)

# Says a command as one would type it, and runs it.
show() {
  say "\$ mecha ${*//"$work/"/}"
  "$mecha" "$@" | sed "s|$work/||g"
}

# Asks a command again and again until it succeeds.
await() {
  local what=$1 deadline=$((SECONDS + ACT_TWO_PATIENCE))
  shift
  until "$@"; do
    if ! kill -0 "$shop" 2>/dev/null || ! kill -0 "$dev" 2>/dev/null || ! kill -0 "$customer" 2>/dev/null ||
      [ $SECONDS -gt $deadline ]; then
      tail -n 30 "$work/log/shop-2.log" "$work/log/dev.log" "$work/log/regulars.log" >&2
      fail "the second act broke down while waiting until $what; logs are in $work/log"
    fi
    sleep 0.1
  done
}

regulars() { "$mecha" invoke --app-id regulars --method "$@"; }

# Whether the regulars have had so many orders taken at this time of day.
has_taken() {
  regulars tally --verb GET 2>/dev/null |
    node -e '
      const { orders } = JSON.parse(require("fs").readFileSync(0));
      process.exit((orders[process.argv[1]] ?? 0) >= Number(process.argv[2]) ? 0 : 1)' \
      "$1" "$ACT_TWO_ORDERS" 2>/dev/null
}

# Whether an app's sidecar has the receipt of the broker's change.
has_receipt() {
  "$mecha" swap --app-id "$1" -o json 2>/dev/null | node -e '
    const { swaps } = JSON.parse(require("fs").readFileSync(0));
    process.exit(swaps.some(({ name, outcome }) => name === "pubsub" && outcome === "applied") ? 0 : 1)' 2>/dev/null
}

dev_said() { grep -q "$1" "$work/log/dev.log"; }

# Puts a Secret with one key on the table.
connection() {
  printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: %s}\nstringData: {%s: "%s"}\n---\n' "$1" "$2" "$3"
}

# A copy of the platform's documents to edit, and the Secrets beside them.
lay_out_platform() {
  rm -rf "$work/platform" "$work/edited"
  cp -r "$here/platform" "$work/platform"
  if $backends; then
    sed -i.bak -e 's/store: sqlite/store: postgres/' -e 's/line: blue/line: redis/' "$work/platform/class.yaml"
    rm "$work/platform/class.yaml.bak"
    {
      connection postgres uri "$SHOP_POSTGRES"
      connection redis address "$SHOP_REDIS"
      connection kafka address "$SHOP_KAFKA"
    } >"$work/platform/connections.yaml"
  else
    {
      connection sqlite file "$MECHA_HOME/data/shop.db"
      connection broker-blue folder "$MECHA_HOME/data/blue"
      connection broker-green folder "$MECHA_HOME/data/green"
    } >"$work/platform/connections.yaml"
  fi
  # The edit: another broker.
  cp -r "$work/platform" "$work/edited"
  sed -e 's/line: blue/line: green/' -e 's/line: redis/line: kafka/' "$work/platform/class.yaml" >"$work/edited/class.yaml"
}

act_two() {
  local runfile=$work/decided.yaml log=$work/log/shop-2.log planned=0 closed=0 books
  lay_out_platform
  say
  say "The second act. The shop opens again on backends that are decided: developers claim what they need, the platform"
  say "says what it has, mecha dev joins them. The apps stay as they are; this is all that changes in dapr.yaml:"
  sed 's|- ~/\.mecha/components$|- ~/.mecha/environments/shop/resources|' "$here/dapr.yaml" >"$runfile"
  { diff "$here/dapr.yaml" "$runfile" || true; } | sed -n 's/^\([<>]\)/  \1/p'
  say
  say "\$ mecha dev platform"
  start /dev/null "$work/log/dev.log" "$mecha" dev "$work/platform"
  dev=$started
  cd "$here"
  until dev_said '^| decision '; do
    kill -0 "$dev" 2>/dev/null || { cat "$work/log/dev.log" >&2; fail "mecha dev ended"; }
    sleep 0.1
  done
  cat "$work/log/dev.log"
  start "$runfile" "$log" "$mecha" run -f -
  shop=$started
  start /dev/null "$work/log/regulars.log" \
    "$mecha" run --app-id regulars --app-port "$REGULARS_PORT" --environment shop -- node "$here/customer/regulars.js"
  customer=$started
  await "orders come in" has_taken before

  say
  say "Orders come in without a pause. Meanwhile somebody is about to edit one line of platform/class.yaml:"
  { diff "$work/platform/class.yaml" "$work/edited/class.yaml" || true; } | sed -n 's/^\([<>]\)/  \1/p'
  say
  show plan --dir "$work/edited" --from "$work/platform" || planned=$?
  [ "$planned" -eq 3 ] || fail "the plan should say with status 3 that something would change, and said $planned"
  say
  say "The edit is saved. mecha dev sees it and says what it decides, and why:"
  local seen
  seen=$(wc -l <"$work/log/dev.log")
  regulars 'time' --data '{"now": "during"}' >/dev/null
  # Put in place whole: who looks sees the old file or the new one.
  cp "$work/edited/class.yaml" "$work/platform/.class.new"
  mv "$work/platform/.class.new" "$work/platform/class.yaml"
  await "mecha dev decides again" dev_said '^| receipts: '
  tail -n "+$((seen + 1))" "$work/log/dev.log"
  local app
  for app in "${ACT_TWO_APPS[@]}"; do
    await "the broker under $app has changed" has_receipt "$app"
  done
  regulars 'time' --data '{"now": "after"}' >/dev/null
  say
  say "The receipts of the sidecars that publish and subscribe:"
  for app in checkout shipping; do
    show swap --app-id "$app"
  done
  await "orders come in on the new broker" has_taken after
  say
  books=$(regulars settle --verb POST --timeout "${ACT_TWO_PATIENCE}s") || fail "the regulars did not settle: $books"
  node -e '
    const { orders, failed, lost, twice, reason } = JSON.parse(process.argv[1]);
    const { before = 0, during = 0, after = 0 } = orders ?? {};
    console.log(`Orders taken: ${before} before the edit, ${during} while the broker changed, ${after} after it.`);
    console.log(`${failed} failed requests, ${lost} lost events, ${twice} pieces sold twice.`);
    if (failed !== 0 || lost !== 0 || twice !== 0) {
      console.error(`error: the books of the second act do not add up: ${reason ?? "see above"}`);
      process.exit(1);
    }' "$books" || fail "the second act lost something; logs are in $work/log"
  say
  if $keep; then
    say "mecha dev goes on, too: edit the backendSelector in $work/platform/class.yaml."
    stay_open "$log"
  fi
  stop "$customer" || true
  customer=
  stop "$shop" || closed=$?
  shop=
  [ "$closed" -eq 0 ] || fail "the shop did not close as it should (status $closed); its log is $log"
  stop "$dev" || true
  dev=
}
