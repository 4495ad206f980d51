#include "camera.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

bool Camera::load(const std::string &folder) {
  std::error_code error;
  std::vector<std::filesystem::path> paths;
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (entry->is_regular_file(error)) paths.push_back(entry->path());
  }
  std::sort(paths.begin(), paths.end());
  for (const auto &path : paths) {
    std::ifstream file(path, std::ios::binary);
    files_.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return !files_.empty();
}

void Camera::start(double rate_hz) {
  const std::chrono::nanoseconds period(static_cast<std::int64_t>(1e9 / rate_hz));
  thread_ = std::thread([this, period] { run(period); });
}

Camera::~Camera() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void Camera::run(std::chrono::nanoseconds period) {
  auto next = std::chrono::steady_clock::now();
  for (std::uint64_t number = 1; !stop_; ++number, next += period) {
    std::this_thread::sleep_until(next);
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (is_full_) ++dropped_;
      slot_.file = &files_[(number - 1) % files_.size()];
      slot_.number = number;
      slot_.timestamp_ns =
          static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
      is_full_ = true;
    }
    taken_.notify_one();
  }
}

bool Camera::take(Shot &shot, std::chrono::milliseconds patience) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!taken_.wait_for(lock, patience, [this] { return is_full_; })) return false;
  shot = slot_;
  is_full_ = false;
  return true;
}
