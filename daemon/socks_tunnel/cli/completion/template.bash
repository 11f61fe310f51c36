# Completion of socks-tunnel for bash 4.4 or newer. The program has written it itself:
# _SOCKS_TUNNEL_COMPLETE=bash_source socks-tunnel

# Puts what the command $1 has into the variables of its caller.
_socks_tunnel_command() {
  case $1 in
@commands@
  esac
}

# Puts what stands after an option, or as an argument, into the variables of its caller.
_socks_tunnel_value() {
  case $1 in
@values@
    *) return 1 ;;
  esac
}

# Adds the names of instances that run or are configured to the array words.
_socks_tunnel_instances() {
  local place
  for place in @configurations@/*.toml; do
    [[ -e $place ]] || continue
    place=${place##*/}
    words+=("${place%.toml}")
  done
  local mine=${TMPDIR:-/tmp}/socks-tunnel-$UID
  [[ -O $mine ]] || mine=/dev/null
  for place in @runtime@/*/ "${XDG_RUNTIME_DIR:-/dev/null}/socks-tunnel"/*/ "$mine"/*/; do
    [[ -e $place/@socket@ ]] || continue
    place=${place%/}
    words+=("${place##*/}")
  done
}

_socks_tunnel() {
  local word path= number=0 ended= waiting= given=' ' typed=${COMP_WORDS[COMP_CWORD]}
  local options commands kind i
  local -a words names line=(socks-tunnel)
  COMPREPLY=()
  _socks_tunnel_command ''
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    [[ $waiting && $word == '=' ]] && continue  # readline cuts --option=value into three words
    line+=("$word")
    if [[ $waiting ]]; then
      waiting=
    elif [[ ! $ended && $word == -- ]]; then
      ended=1
    elif [[ ! $ended && $word == -?* ]]; then
      given+="$word "
      _socks_tunnel_value "$path $word" && waiting=$word
    elif [[ $commands == *" $word "* ]]; then
      path+=" $word" number=0 given=' '
      _socks_tunnel_command "$path"
    else
      _socks_tunnel_value "$path $number" && [[ $kind == command ]] && break
      ((number++))
    fi
  done
  [[ $waiting && $typed == '=' ]] && typed=
  kind= words=()
  if [[ $waiting ]]; then
    _socks_tunnel_value "$path $waiting"
  elif [[ ! $ended && $typed == -* && $i == "$COMP_CWORD" ]]; then
    # A line for each option: none of its names once one has been given, unless it starts with *.
    while read -r -a names; do
      if [[ ${names[0]} == '*' ]]; then
        names=("${names[@]:1}")
      else
        for word in "${names[@]}"; do
          [[ $given != *" $word "* ]] || continue 2
        done
      fi
      words+=("${names[@]}")
    done <<<"$options"
  elif [[ $commands ]]; then
    read -r -a words <<<"$commands"
  else
    _socks_tunnel_value "$path $number"
  fi
  case $kind in
    instance) _socks_tunnel_instances ;;
    asked)
      mapfile -t words < <(env COMP_WORDS="${line[*]}" COMP_TYPED="$typed" \
        _SOCKS_TUNNEL_COMPLETE=bash_complete "$1" 2>/dev/null)
      words=("${words[@]%%$'\t'*}")
      ;;
    file)
      compopt -o default
      return
      ;;
    command)
      # bash-completion has it, under one name or the other.
      if declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$i"
      elif declare -F _command_offset >/dev/null; then
        _command_offset "$i"
      else
        compopt -o default
      fi
      return
      ;;
  esac
  for word in "${words[@]}"; do
    [[ $word && $word == "$typed"* ]] || continue
    printf -v word %q "$word"
    [[ " ${COMPREPLY[*]} " == *" $word "* ]] || COMPREPLY+=("$word")
  done
}

complete -F _socks_tunnel socks-tunnel
