# Sourced by scripts/setup and scripts/run: where the environment lies, whether it is up to date, and how
# it is entered. Nothing here changes a file.
#
#   $STATE/venv      Python packages (with the ROS 2 wheels, unless a ROS distribution is sourced)
#   $STATE/install   the workspace as colcon built it; build/ and log/ beside it
#   $STATE/*.stamp   hash of what the two were made from
#
# $STATE is .tww/<distro> in the repository. CMake, script headers and many tools break on paths with spaces
# or of great length; then it is a folder in the user's cache.

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

tww_locate() {
  # $1: kilted, jazzy, sourced, or nothing. Sets ROOT, DISTRO, STATE_ROOT, STATE, VENV.
  ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
  DISTRO=${1:-${TWW_DISTRO:-}}
  if [ -z "$DISTRO" ]; then
    DISTRO=kilted
    if [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ] &&
      python3 -c 'import rclpy' 2>/dev/null; then
      DISTRO=sourced
    fi
  fi
  local name=$DISTRO
  case $DISTRO in
    kilted | jazzy) ;;
    sourced)
      [ -n "${ROS_DISTRO:-}" ] || die 'distro sourced: expected a sourced ROS 2, got no ROS_DISTRO;' \
        'source its setup.bash, or say --distro kilted'
      name=sourced-$ROS_DISTRO ;;
    *) die "distro: expected kilted, jazzy or sourced, got '$DISTRO'" ;;
  esac
  local simple='^[A-Za-z0-9._/+@-]{1,80}$'
  if [ -n "${TWW_STATE_DIR:-}" ]; then
    STATE_ROOT=$TWW_STATE_DIR
  elif [[ $ROOT =~ $simple ]] && [ -w "$ROOT" ]; then
    STATE_ROOT=$ROOT/.tww
  else
    local cache=${XDG_CACHE_HOME:-${HOME:-/}/.cache}
    [[ $cache =~ $simple ]] || cache=/var/tmp/cache-$(id -u)
    STATE_ROOT=$cache/tww_ros/$(printf '%s' "$ROOT" | sha256sum | cut -c1-12)
  fi
  [[ $STATE_ROOT =~ ^/[A-Za-z0-9._/+@-]+$ ]] ||
    die "TWW_STATE_DIR: expected an absolute path without spaces, got '$STATE_ROOT'"
  STATE=$STATE_ROOT/$name
  VENV=$STATE/venv
}

tww_requirements() {
  # The requirement lists of this environment, one a line.
  local lists=$ROOT/scripts/requirements
  printf '%s\n' "$lists/python.txt" "$lists/build.txt" "$lists/dev.txt"
  if [ "$DISTRO" != sourced ]; then
    printf '%s\n' "$lists/cv.txt" "$lists/ros-$DISTRO.txt"
  fi
}

tww_venv_hash() {
  {
    printf '%s\n' "$DISTRO" "$VENV" "$(tww_torch)"
    tww_requirements | tr '\n' '\0' | xargs -0 cat
    cat "$ROOT/scripts/requirements/torch.txt" "$ROOT/scripts/lib/fix_ros_wheels.py"
  } | sha256sum | cut -d' ' -f1
}

tww_build_hash() {
  (
    cd "$ROOT"
    printf '%s\n' "$ROOT" launch/* config/*
    cat package.xml setup.py setup.cfg colcon_defaults.yaml resource/*
    find tww_interfaces -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  ) | sha256sum | cut -d' ' -f1
}

tww_torch() {
  # What --torch said last; nothing for the pinned one.
  cat "$STATE/torch.option" 2>/dev/null || true
}

tww_is_ready() {
  [ -x "$VENV/bin/python" ] && [ "$(cat "$STATE/venv.stamp" 2>/dev/null)" = "$(tww_venv_hash)" ] &&
    [ "$(cat "$STATE/build.stamp" 2>/dev/null)" = "$(tww_venv_hash) $(tww_build_hash)" ]
}

tww_enter_venv() {
  export VIRTUAL_ENV=$VENV PATH=$VENV/bin:$PATH TWW_DISTRO=$DISTRO
  export TWW_SAMPLE_VIDEOS=${TWW_SAMPLE_VIDEOS:-$STATE_ROOT/videos}
  unset PYTHONHOME
  [ "$DISTRO" = sourced ] && return
  # The wheels are the whole of ROS here: nothing of a distribution that happens to be sourced.
  local python_lib
  python_lib=$(echo "$VENV"/lib/python3.*/site-packages)
  export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=$DISTRO
  export AMENT_PREFIX_PATH=$VENV CMAKE_PREFIX_PATH=$VENV LD_LIBRARY_PATH=$VENV/lib
  local libs
  for libs in "$python_lib"/ros_*.libs; do
    LD_LIBRARY_PATH+=:$libs
  done
  unset PYTHONPATH COLCON_PREFIX_PATH
  # The wheels bring a start-up hook that sets LD_LIBRARY_PATH, in random order, and runs Python once more.
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
}

tww_enter() {
  tww_enter_venv
  set +u
  source "$STATE/install/local_setup.bash"
  set -u
  export PATH=$STATE/install/tww_ros/lib/tww_ros:$PATH
}
