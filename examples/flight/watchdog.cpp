#include "watchdog.hpp"

namespace {
std::int64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}
} // namespace

Watchdog::Watchdog(const trtvlm::Session &session, std::chrono::milliseconds patience)
    : session_(session), thread_([this, patience] { run(patience); }) {}

Watchdog::~Watchdog() {
  stop_ = true;
  thread_.join();
}

void Watchdog::begin() { since_ns_ = now_ns(); }
void Watchdog::end() { since_ns_ = 0; }

void Watchdog::run(std::chrono::milliseconds patience) {
  const std::int64_t most = std::chrono::nanoseconds(patience).count();
  while (!stop_) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::int64_t since = since_ns_;
    // An answer that ended meanwhile is not counted: only who takes the mark away may bark.
    if (since != 0 && now_ns() - since > most && since_ns_.compare_exchange_strong(since, 0)) {
      ++barked_;
      session_.cancel();
    }
  }
}
