# Starts an agent in the guest or finds it again, gives it lines, and copies its output from an offset.
#
# For dash, busybox's sh and bash, with the tools of the smallest guests. The host sends this text and then one line of
# words: how (start or again), a nonce, the process's folder, the offset, the working directory, how many variables
# follow, the variables, the command. Every further line is `KEY JSON`, or `!kill`.
# Standard output: the nonce as a line, then the bytes of `out` from the offset. Standard error: notes (`rave: …`).
# Files: q/KEY is a line's content, complete because it was renamed; `in` is what the agent was given, in order.
# The agent's output goes through a pipe: some agents refuse a file.
umask 077
note() { printf 'rave: %s\n' "$*" >&2; }
IFS= read -r words
eval "set -- $words"
how=$1 nonce=$2 folder=$HOME/.ravebot/agents/$3 offset=$4
shift 4
PATH=${PATH:-/usr/bin:/bin}:/usr/local/bin:$HOME/.local/bin
export PATH

# Runs in a session of its own: it survives the connection. Only one wins the folder `started`.
# Whoever reads the pipe `life` sees its end when the keeper is gone, however it went.
keeper='
cd "$1" && mkdir started 2>/dev/null || exit 0
shift
exec 4<>bell 7<>life
: >>out
read -r stat </proc/$$/stat
set_start() { start=${20}; }
set_start ${stat##*) }
printf "%s %s\n" "$$" "$start" >keeper.new
mv keeper.new keeper
fed=" "
while read -r key <&4; do
    case $key in
        "!end") break ;;
        *[!a-z0-9-]* | "") continue ;;
    esac
    case $fed in *" $key "*) continue ;; esac
    IFS= read -r line <"q/$key" || continue
    fed="$fed$key "
    printf "%s\n" "$line" >>in
    printf "%s\n" "$line"
done | {
    exec 6<&0
    { head -c 262144 >err; cat >/dev/null; } <errors 4>&- 6<&- 7>&- &
    { ulimit -f 131072; exec cat <output >>out; } 4>&- 6<&- 7>&- & # 64 MiB
    copy=$!
    setsid sh -c "
        cd \"\$1\" 2>/dev/null || cd
        left=\$2
        shift 2
        while [ \$left -gt 0 ]; do export \"\$1\"; shift; left=\$((left - 1)); done
        exec \"\$@\"" agent "$@" <&6 >output 2>errors 4>&- 6<&- 7>&- &
    agent=$!
    exec 6<&- </dev/null
    printf "%s\n" "$agent" >pid
    wait "$agent"
    code=$?
    kill -KILL "-$agent"
    { sleep 2; kill "$copy"; } 4>&- 7>&- &
    wait "$copy"
    kill $!
    printf "%s\n" "$code" >ended.new
    mv ended.new ended
    printf "!end\n" >&4
}
'

# The agent and what it started: its number may be written a moment after the keeper's, and name a group a moment later.
end_agent() {
    tries=500
    until [ -e ended ] || killed || [ "$tries" -eq 0 ]; do sleep 0.01; tries=$((tries - 1)); done
}
killed() { read -r agent <pid && { kill -KILL "-$agent" || [ ! -e "/proc/$agent" ]; }; } 2>/dev/null

# By its process id and the time at which that process started: ids are used again.
alive() {
    { read -r pid start <keeper && read -r stat <"/proc/$pid/stat"; } 2>/dev/null || return 1
    is_it ${stat##*) }
}
is_it() { [ "${20}" = "$start" ] && [ "$1" != Z ]; }

found() (
    left=$2
    shift 2
    while [ "$left" -gt 0 ]; do export "$1"; shift; left=$((left - 1)); done
    command -v "$1" >/dev/null
)

# Of the processes that ended, the newest stay: their output may not have been read yet.
forget() (
    cd "$HOME/.ravebot/agents" && ls -1t | tail -n +21 | while read -r old; do
        [ ! -e "$old/ended" ] || rm -rf "./$old"
    done
)

started=again
if [ ! -d "$folder/started" ]; then
    [ "$how" = start ] || { note gone; exit 0; }
    found "$@" || { note missing; exit 0; }
    started=new
    why=$(mkdir -p "$folder/q" 2>&1) && cd "$folder" || {
        why=$(printf '%s' "$why" | tr '\n' ' ' | cut -c 1-200)
        note "broken ~/.ravebot must be a folder in which the sandbox's user can write ($why)"
        exit 0
    }
    for pipe in bell life errors output; do [ -p "$pipe" ] || mkfifo "$pipe" 2>/dev/null || [ -p "$pipe" ]; done
    setsid sh -c "$keeper" keeper "$folder" "$@" </dev/null >/dev/null 2>&1 &
    tries=500
    until [ -e keeper ] || [ "$tries" -eq 0 ]; do sleep 0.01; tries=$((tries - 1)); done
    [ -e keeper ] || { note "broken the agent could not be started: is the disk full?"; exit 0; }
fi
cd "$folder" || exit 0
exec 4<>bell 5<>life 6<life 5>&-
tail=
watch=
trap 'kill $tail $watch 2>/dev/null' EXIT
trap 'exit 0' HUP INT TERM PIPE
note "$started"
printf '%s\n' "$nonce"
tail -c "+$((offset + 1))" -f out 2>/dev/null 4>&- 6<&- &
tail=$!
# After the keeper, however it ended, nothing of its agent is left.
{
    trap - EXIT HUP INT TERM PIPE
    read -r _ <&6
    end_agent
    code=unknown
    [ ! -e ended ] || read -r code <ended
    size=$(wc -c <out)
    [ ! -s err ] || tail -n 5 err | cut -c 1-400 | while IFS= read -r line; do note "err $line"; done
    note "ended $code $((size))"
} </dev/null 4>&- &
watch=$!
exec 6<&-

while IFS=' ' read -r key line; do
    case $key in
        '!kill')
            end_agent
            continue
            ;;
        *[!a-z0-9-]* | '') continue ;;
    esac
    if ! alive; then # what is left of a keeper that was killed must not run on
        end_agent
        note "no $key"
        continue
    fi
    if [ ! -e "q/$key" ]; then
        { printf '%s\n' "$line" >"q/.$$" && mv -f "q/.$$" "q/$key"; } 2>/dev/null || { note "full $key"; continue; }
    fi
    printf '%s\n' "$key" >&4
    sync "q/$key" 2>/dev/null
    note "ok $key"
    [ "$started" = again ] || { started=again; forget; } 2>/dev/null
done
